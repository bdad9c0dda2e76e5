"""A model of another library, and the norms of its examples' gradients: one worked example each."""
