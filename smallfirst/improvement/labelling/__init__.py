"""Label rows with a large model under a cost cap and keep the confident answers."""
