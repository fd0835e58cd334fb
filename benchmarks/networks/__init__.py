"""Small networks that the benchmarks measure on, beside the bundled digits: trained here, weights in this folder."""
