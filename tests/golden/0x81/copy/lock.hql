clean                          
