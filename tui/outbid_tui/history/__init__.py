"""What the history screen is made of."""
