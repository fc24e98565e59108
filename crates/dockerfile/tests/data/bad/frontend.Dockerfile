# syntax=example.com/my/frontend:1
FROM a
