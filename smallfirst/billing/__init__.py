"""Money after go-live: the own machine as it was used, break-even and forecast, the monthly statement."""
