"""Framework integrations, one file per framework; importing this package imports none of them."""
