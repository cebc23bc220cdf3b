"""Ray: the one place where a cluster is started or joined, with its token."""
