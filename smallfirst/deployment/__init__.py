"""What a Router stands on, and what is served: heads, certificate, reference, rules, and the watch after go-live."""
