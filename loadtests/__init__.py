"""Load tests with Locust against any running server."""
