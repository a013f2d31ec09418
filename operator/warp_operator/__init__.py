"""The Kubernetes operator of cartridge-warp."""
