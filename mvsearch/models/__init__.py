"""Models of layouts: their features, a Gaussian process of quality, a regression of throughput."""
