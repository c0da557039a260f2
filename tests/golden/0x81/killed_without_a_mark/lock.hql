pid 4711                       
