"""DeepFloyd IF: pictures made as pixels, small ones from a text, then larger ones from them."""
