"""Plugins that speak other products' interfaces; the core does not know them."""
