"""What in a text is personal or secret: each detector yields spans of a text in its normal form."""
