"""Power cuts and kills: histories, images, the ledger that judges them, and mutations."""
