"""The book's runner, not the library: the `ood-book` command and what it stands on.  No result depends on it; what a
notebook computes depends on the rest of `ood_lib` alone."""
