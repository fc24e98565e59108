FROM a
RUM make
