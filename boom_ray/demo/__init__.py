"""``boom-ray search-demo``: the nearest texts of a base and of a merged model, side by side."""
