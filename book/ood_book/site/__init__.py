"""The pages of the book: staged for Jupyter Book, with links in both directions."""
