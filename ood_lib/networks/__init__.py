"""What turns an image into logits."""
