"""Silent promotion is an error in every test: of ranks (a batch by accident) and of dtypes."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
