"""Registration, and e-mail addresses that count once their owner has confirmed them."""
