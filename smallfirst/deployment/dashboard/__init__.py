"""The page of an endpoint: try a request, watch share, accuracy, money and alarms, label what helps most."""
