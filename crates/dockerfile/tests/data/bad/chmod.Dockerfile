FROM a
COPY --chmod=u+x x y
