"""Money after go-live: the machines, used and needed, break-even and forecast, the monthly statement."""
