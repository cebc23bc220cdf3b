"""Better models from live traffic: labelling, harvest, challenge."""
