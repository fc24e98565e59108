# Most are in upper case.
FROM scratch as Base
copy a b
Copy c d
from Base AS other
LABEL a=1
