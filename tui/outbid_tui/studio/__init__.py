"""What the studio screen is made of."""
