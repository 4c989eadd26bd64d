"""The walls around validation, and what is believed of what comes out of them."""
