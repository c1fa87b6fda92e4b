"""What a frozen network knows of an image."""
