"""What taking orders and transfers over HTTP costs."""
