"""The same dashboard in a browser, through textual-serve."""
