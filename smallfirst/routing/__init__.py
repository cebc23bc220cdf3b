"""Who answers: certificate, router, domain."""
