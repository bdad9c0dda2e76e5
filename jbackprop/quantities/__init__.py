"""What the factors of a batch tell: numbers about every example's gradient, none ever formed."""
