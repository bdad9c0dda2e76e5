"""Networks from and to other libraries: each is read as steps and written from them."""
