FROM a
COPY --from=$X x y
