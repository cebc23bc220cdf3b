"""How users reach the product: the command line, jobs, and plug-ins that speak other products' interfaces."""
