"""What happens now: preflight, cluster, attempts, run, job."""
