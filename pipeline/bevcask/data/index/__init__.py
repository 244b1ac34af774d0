"""Which frames there are: tables or info files -> memory-mapped arrays -> a selection of them."""
