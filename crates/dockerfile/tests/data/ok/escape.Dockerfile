# escape=`
from scratch
copy a `
  b c:\dir\
env X=a`$b
