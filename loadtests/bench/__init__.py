"""`python -m loadtests bench` and `peers`: what a text costs here, beside the bare engine and what others run."""
