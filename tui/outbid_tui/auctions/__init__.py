"""What the auction screen is made of: its rows, and one auction in full."""
