"""The book's runner, not the library: the `ood-book` command and what it stands on.  What a notebook computes depends
on `ood_lib` alone, and what it shows on the charts of `explorables` too."""
