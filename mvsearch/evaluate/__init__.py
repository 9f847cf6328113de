"""What one job does on one device: train the proxy, time the deployed layout."""
