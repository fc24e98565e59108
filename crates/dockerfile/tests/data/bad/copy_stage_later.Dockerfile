FROM a
COPY --from=3 x y
