"""Networks that read: what turns texts or pictures into conditions, or judges them."""
