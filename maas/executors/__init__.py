"""Who answers a call: in this process, or elsewhere. One seam, in `base`."""
