FROM a
ADD git@github.com:u/r /
