resource "terraform_data" "network" {
  input = "10.0.0.0/8"
}

resource "terraform_data" "subnet" {
  input = "10.0.0.0/4"

  lifecycle {
    precondition {
      condition     = tonumber(split("/", "10.0.0.0/4")[1]) > tonumber(split("/", terraform_data.network.input)[1])
      error_message = "the subnet is larger than its network"
    }
  }
}
