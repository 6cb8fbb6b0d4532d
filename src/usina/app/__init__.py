"""Operations: the only door for change. Authorize, decide, record."""
