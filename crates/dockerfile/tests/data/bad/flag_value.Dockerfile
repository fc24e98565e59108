FROM a
COPY --from= x y
